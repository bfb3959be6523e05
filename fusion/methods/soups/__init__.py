"""Model soups: uniform and greedy selection of ingredients, and weight averaging."""
