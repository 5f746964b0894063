// Reports a panic through pvpanic, as a kernel does whose end is near.
// Options:

.code16
.Lpanic:
    mov dx, PANIC
    in al, dx                       // which events does the host want to hear of?
    test al, PANICKED
    jz .Lpanic_unheard
    mov al, PANICKED
    out dx, al
.Lpanic_unheard:
    mov al, 1                       // not reached
    out EXIT, al
.code64
