// Asks for a reset, through the chipset's reset control.
// Options:

.code16
    mov dx, RESET_CONTROL
    mov al, RESET_HARD
    out dx, al
    hlt                             // not reached
.code64
