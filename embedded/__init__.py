"""Real servers on a bare machine: Postgres and Valkey from wheels, and the processes of ``tokenfleet up``.

Promise: whatever is started here ends with the process that started it, however that process ends.
"""
