// Sends the debug console's input (at x2) back through it (at x1), until the input ends.
// Options: --debug-console mmio:0x8000,in=0x8004 --reg x1=0x8000 --reg x2=0x8004

// The simplest device that can be, with no status to ask: a read gives 0 while no byte waits, and
// an EOT when none will come any more.

.Lrelay:
    ldrb w0, [x2]
    cbz w0, .Lrelay
    cmp w0, #END_OF_INPUT
    b.eq .Lrelay_end
    strb w0, [x1]
    b .Lrelay
.Lrelay_end:
    mov x1, #EXIT
    str wzr, [x1]
