"""Where losses are measured: directions, slices, grids of bit-widths."""
