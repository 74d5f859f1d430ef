"""MoonViT, the vision tower of Kimi K2.5, and its image processor. Imports no torch."""
