"""Features to models: heads and ConvNets trained with exact synchronous averaging."""
