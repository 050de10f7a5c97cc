"""The figures of docs/performance.md: one load on Penstock, on bare servers and on peers."""
