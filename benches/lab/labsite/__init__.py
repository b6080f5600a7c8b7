"""The application of the lab: a Django REST Framework gateway that has a Rust service do the heavy work.

It stands on tests/e2e/djangoapp, whose folder has to be on the Python path too. COMPUTE_PORT is where the service listens.
"""
