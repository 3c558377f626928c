"""morfi: finds the directions that make a fine-tuned language model hallucinate, and steers them."""

__version__ = "0.1.0"
