"""Methods that choose coefficients per sample from the logits of the experts."""
