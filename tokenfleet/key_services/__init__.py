"""Key services: key-encryption keys that never leave where they are kept (docs/keys.md).

Each module is one implementation of :class:`tokenfleet_client.envelope.KeyWrapper`, and names itself in the key list as
``id:scheme://…``. Nothing is asked of a service before a data key is wrapped or unwrapped.
"""
