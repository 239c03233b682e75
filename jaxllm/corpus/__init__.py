"""From what people collect to a clean corpus: stages over shards of documents, and their report."""
