// Reports a panic through pvpanic, as a kernel does whose end is near.
// Options:

.Lpanic:
    mov x1, #PANIC
    ldrb w0, [x1]                   // which events does the host want to hear of?
    tbz w0, #PANICKED, .Lpanic_unheard
    mov w0, #(1 << PANICKED)
    strb w0, [x1]
.Lpanic_unheard:
    mov w0, #1                      // not reached
    mov x1, #EXIT
    str w0, [x1]
