"""Speed of text models: evaluation, gates, cuts into shards, tokenising."""
