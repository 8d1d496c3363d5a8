"""Storage: converted models as plain safetensors, and model folders."""
