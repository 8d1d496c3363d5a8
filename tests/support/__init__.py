"""What tests share: tiny models, running and comparing them, oracles, training."""
