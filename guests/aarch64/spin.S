// Never exits: only a time-out ends it.
// Options: --timeout 500ms

.Lspin:
    b .Lspin
