// Adds x0 and x1, which the host sets, and prints the sum.
// Options: --reg x0=2 --reg x1=2

.Ladd:
    mov x9, #LOAD
    mov sp, x9                      // the stack grows down from the image
    mov x19, x0
    mov x20, x1
    mov x21, #CONSOLE

    mov x0, x19
    bl .Ladd_number
    adr x0, .Ladd_plus
    bl .Ladd_text
    mov x0, x20
    bl .Ladd_number
    adr x0, .Ladd_equals
    bl .Ladd_text
    add x0, x19, x20
    bl .Ladd_number
    adr x0, .Ladd_newline
    bl .Ladd_text
    mov x1, #EXIT
    str wzr, [x1]

// Prints the text at x0, up to its zero byte.
.Ladd_text:
    ldrb w2, [x0], #1
    cbz w2, .Ladd_text_end
    strb w2, [x21]
    b .Ladd_text
.Ladd_text_end:
    ret

// Prints x0 in decimal. Division finds the last digit first, so the stack turns them round.
.Ladd_number:
    mov x3, #10
    str xzr, [sp, #-16]!            // no digit is 0: the bottom. sp moves by 16, always
.Ladd_digit:
    udiv x1, x0, x3
    msub x2, x1, x3, x0             // the remainder
    add x2, x2, #'0'
    str x2, [sp, #-16]!
    mov x0, x1
    cbnz x0, .Ladd_digit
.Ladd_pop:
    ldr x2, [sp], #16
    cbz x2, .Ladd_number_end
    strb w2, [x21]
    b .Ladd_pop
.Ladd_number_end:
    ret

.Ladd_plus:
    .asciz " + "
.Ladd_equals:
    .asciz " = "
.Ladd_newline:
    .asciz "\n"
