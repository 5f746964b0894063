// Sends the debug console's input back through it, until the input ends.
// Options: --debug-console port:0x10,in=0x11

// The simplest device that can be, with no status to ask: a read gives 0 while no byte waits, and
// an EOT when none will come any more.

.code16
.Lrelay:
    in al, 0x11
    test al, al
    jz .Lrelay
    cmp al, END_OF_INPUT
    je .Lrelay_end
    out 0x10, al
    jmp .Lrelay
.Lrelay_end:
    xor eax, eax
    out EXIT, eax
.code64
