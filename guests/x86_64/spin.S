// Never exits: only a time-out ends it.
// Options: --timeout 500ms

.code16
.Lspin:
    jmp .Lspin
.code64
