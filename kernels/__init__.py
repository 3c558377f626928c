"""Fused SAE and rank-correlation kernels; imports torch and triton only."""
