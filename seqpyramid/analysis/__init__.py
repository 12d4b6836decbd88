"""What a model costs and how it learns: parameters, FLOPs, speed, memory, gradient flow."""
