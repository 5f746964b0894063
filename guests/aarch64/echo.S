// Sends back what it receives, until the input ends.
// Options:

// The receiver of a 16550 has two registers to watch: a bit in the line status says that a byte
// waits, and reading the data register takes it.

.Lecho:
    mov x1, #CONSOLE
.Lecho_wait:
    ldrb w2, [x1, #CONSOLE_LINE]
    tbz w2, #DATA_READY, .Lecho_wait
    ldrb w2, [x1]
    cmp w2, #END_OF_INPUT
    b.eq .Lecho_end
    strb w2, [x1]
    b .Lecho_wait
.Lecho_end:
    mov x1, #EXIT
    str wzr, [x1]
