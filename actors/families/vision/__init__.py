"""ViT and ResNet image classifiers with heads of their own."""
