// Does nothing but leave to the monitor, for ever: what one exit costs.
// Options: --max-exits 100000

// Port 0x80 is where a PC's firmware shows how far it has come. Nothing listens here, so what is
// measured is the way out and back.

.code16
.Lexits:
    out 0x80, al
    jmp .Lexits
.code64
