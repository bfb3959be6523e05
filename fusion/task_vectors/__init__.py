"""Task vectors, codings, and the kernels that merge, sparsify and reduce them."""
