"""Networks as linen modules: backbones, contexts, decoders, and the one composition of them."""
