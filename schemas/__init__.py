"""What is on disk: Arrow schemas of each kind of row, the ledger, the manifest, reasons in words. Computes nothing."""
