"""From media into stores: a plan of what is needed, then snapshot archives, chunks, and publishing as a backup does."""
