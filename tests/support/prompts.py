"""Twenty varied prompts for end-to-end tests."""

PROMPTS = (
    "The capital of France is",
    "def quicksort(items):\n",
    "Once upon a time, in a village by the sea,",
    "1, 1, 2, 3, 5, 8, 13,",
    "The three primary colours are",
    "Dear Sir or Madam,\n\n",
    "Wasser kocht bei",
    "Q: What is the boiling point of water?\nA:",
    "SELECT name, age FROM",
    "In physics, the second law of thermodynamics",
    "naïve café 日本語 🐟 text:",
    "A",
    "    indented\n        more",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "To be, or not to be, that is",
    "Ingredients:\n- 200 g flour\n- 2 eggs\n",
    '{"name": "pilot", "kind":',
    "She opened the door and saw",
    "The derivative of x^2 is",
    "HTTP/1.1 404",
)
