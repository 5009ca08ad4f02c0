"""Vector stores: one provider of passages among others."""
