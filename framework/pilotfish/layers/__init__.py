"""The architecture parts that several plugins share."""
