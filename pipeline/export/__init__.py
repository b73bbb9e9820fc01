"""A finished run's pictures, tokens or embeddings in another format."""
