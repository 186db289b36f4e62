"""What a definition says, in sentences: one module for each part of the language.

Invariant: every key that a definition sets shows in its explanation; a test changes each of them and looks.
``providers.describe`` puts the parts together.
"""
