"""A teacher behind an embeddings API: requests, their limits, the journal of paid answers, and who the model is."""
