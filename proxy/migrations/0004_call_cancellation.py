from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('proxy', '0003_operation_and_jobs'),
    ]

    operations = [
        migrations.CreateModel(
            name='CallCancellation',
            fields=[
                ('call_id', models.CharField(max_length=32, primary_key=True, serialize=False)),
                ('by', models.CharField(help_text='Who asked for it.', max_length=200)),
                ('requested_at', models.DateTimeField(auto_now_add=True)),
            ],
            options={
                'indexes': [models.Index(fields=['requested_at'], name='cancellation_recent')],
            },
        ),
    ]
