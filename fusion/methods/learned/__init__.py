"""Methods that learn a coding, a gate, or parameters inside the model."""
