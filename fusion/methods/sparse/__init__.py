"""Methods that cut, mask or elect entries of task vectors: TIES, DARE, Breadcrumbs and others."""
