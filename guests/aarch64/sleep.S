// Sleeps until an interrupt comes, and none does: only a time-out ends it.
// Options: --cpus 2 --timeout 500ms

.Lsleep:
    wfi
    b .Lsleep
