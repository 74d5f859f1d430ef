"""Images: as callers give them, in the place of their placeholders, as embeddings of a pass."""
