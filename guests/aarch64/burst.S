// Prints 100 KiB byte by byte, and a last word: then it stays, with nothing left to do.
// Options: --expect done

// Nothing but writes to one register: no exit need be made for each.

.set BURST_LINES, 1600
.set BURST_FIRST, 0x30              // a line has the characters from '0' on, and ends with the 64th

.Lburst:
    mov x1, #CONSOLE
    mov w2, #BURST_LINES
    mov w4, #10
.Lburst_line:
    mov w3, #BURST_FIRST
.Lburst_next:
    strb w3, [x1]
    add w3, w3, #1
    cmp w3, #(BURST_FIRST + 63)
    b.ne .Lburst_next
    strb w4, [x1]
    subs w2, w2, #1
    b.ne .Lburst_line

    adr x2, .Lburst_text
.Lburst_word:
    ldrb w3, [x2], #1
    cbz w3, .Lburst_stay
    strb w3, [x1]
    b .Lburst_word
.Lburst_stay:
    b .Lburst_stay

.Lburst_text:
    .asciz "done"
