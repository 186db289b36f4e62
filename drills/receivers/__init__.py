"""The drill of receivers: some are slow, dead, hostile or at home here, and nobody else notices."""
