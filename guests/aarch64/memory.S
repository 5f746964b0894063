// Uses the first and the last byte of RAM (x1), and reads and writes where there is none.
// Options: --memory 128M --reg x1=0x47ffffff

// RAM keeps what is written. Where nothing is, nobody drives the bus: reads see all ones, and
// writes go nowhere.

.Lmemory:
    mov x19, x1
    mov w20, #0                     // the status: 0 while all is well
    adr x21, .Lmemory_texts
    mov x22, #CONSOLE

    mov x0, #RAM
    bl .Lmemory_keeps
    bl .Lmemory_report
    mov x0, x19
    bl .Lmemory_keeps
    bl .Lmemory_report

    add x19, x19, #1                // the first byte after RAM
    ldr w0, [x19]
    cmn w0, #1                      // all ones is -1
    bl .Lmemory_report
    mov w0, #0x5a
    strb w0, [x19]
    ldrb w0, [x19]
    cmp w0, #0xff
    bl .Lmemory_report

    mov x1, #EXIT
    str w20, [x1]

// Sets Z if the byte at x0 keeps two opposite patterns, and leaves it as it was.
.Lmemory_keeps:
    ldrb w1, [x0]
    mov w2, #0x5a
    strb w2, [x0]
    ldrb w3, [x0]
    cmp w3, #0x5a
    b.ne .Lmemory_restore
    mov w2, #0xa5
    strb w2, [x0]
    ldrb w3, [x0]
    cmp w3, #0xa5
.Lmemory_restore:
    strb w1, [x0]                   // leaves the flags alone
    ret

// Prints the next text with "ok" if Z is set; with "FAIL" if not, and then the status is 1.
.Lmemory_report:
    mov x9, x30                     // `bl` below overwrites the way back
    cset w8, ne
    orr w20, w20, w8
    mov x0, x21
    bl .Lmemory_print
    mov x21, x0
    adr x0, .Lmemory_ok
    cbz w8, .Lmemory_result
    adr x0, .Lmemory_fail
.Lmemory_result:
    bl .Lmemory_print
    ret x9

// Prints the text at x0, and leaves x0 at what follows its zero byte.
.Lmemory_print:
    ldrb w1, [x0], #1
    cbz w1, .Lmemory_printed
    strb w1, [x22]
    b .Lmemory_print
.Lmemory_printed:
    ret

.Lmemory_texts:
    .asciz "first byte"
    .asciz "last byte"
    .asciz "read from nothing"
    .asciz "write to nothing"
.Lmemory_ok:
    .asciz ": ok\n"
.Lmemory_fail:
    .asciz ": FAIL\n"
