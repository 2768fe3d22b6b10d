"""The denoisers of the published table, behind our contract."""
