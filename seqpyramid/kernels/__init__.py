"""Fused recurrent steps; each has a plain twin that it is tested against."""
