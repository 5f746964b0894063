// Adds rax and rbx, which the host sets, and prints the sum.
// Options: --mode long --reg rax=2 --reg rbx=2

.code64
.Ladd:
    mov rsp, LOAD_FLAT              // the stack grows down from the image
    mov rdi, rax
    call .Ladd_number
    lea rsi, [rip + .Ladd_plus]
    call .Ladd_text
    mov rdi, rbx
    call .Ladd_number
    lea rsi, [rip + .Ladd_equals]
    call .Ladd_text
    lea rdi, [rax + rbx]
    call .Ladd_number
    lea rsi, [rip + .Ladd_newline]
    call .Ladd_text
    xor eax, eax
    out EXIT, eax

// Prints the text at rsi, up to its zero byte.
.Ladd_text:
    mov dx, CONSOLE
    mov r8, rax
.Ladd_text_next:
    lodsb
    test al, al
    jz .Ladd_text_end
    out dx, al
    jmp .Ladd_text_next
.Ladd_text_end:
    mov rax, r8
    ret

// Prints rdi in decimal. Division finds the last digit first, so the stack turns them round.
.Ladd_number:
    mov r8, rax
    mov ecx, 10
    mov rax, rdi
    push 0                          // no digit is 0: the bottom
.Ladd_digit:
    xor edx, edx
    div rcx                         // rdx:rax / 10: quotient to rax, remainder to rdx
    add edx, '0'
    push rdx
    test rax, rax
    jnz .Ladd_digit
    mov dx, CONSOLE
.Ladd_pop:
    pop rax
    test al, al
    jz .Ladd_number_end
    out dx, al
    jmp .Ladd_pop
.Ladd_number_end:
    mov rax, r8
    ret

.Ladd_plus:
    .asciz " + "
.Ladd_equals:
    .asciz " = "
.Ladd_newline:
    .asciz "\n"
