"""The Hopfield network of decoder rows, its attractors, their basins, and the doses that change one."""
