"""How good generated tokens and images are: scores of tokens by how much was masked, and of whole distributions."""
