"""What a cut did to a network, put right without training: closed-form compensation, sequential repair."""
