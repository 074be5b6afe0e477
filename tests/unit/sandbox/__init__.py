"""The two ends of the jail's channel, each with a liar at the other."""
