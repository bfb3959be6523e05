"""BERT and RoBERTa text classifiers as a model family."""
