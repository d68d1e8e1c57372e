"""From a trained model to music: decoding with a cache, sampling, and the grammar of tokens; and to embeddings."""
